"""Small members of a dozen families: each passes every check of `bench/architectures.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from fastadv.models import ARCHITECTURES, AttackView, as_model, create_model

BENCH = Path(__file__).resolve().parents[2] / "bench" / "architectures.py"
SMALL = (
    *(
        "test_byobnet",
        "test_convnext",
        "test_efficientnet",
        "test_nfnet",
        "test_resnet",
    ),
    *("test_vit", "test_mambaout", "test_vit_relpos", "starnet_s050", "lcnet_035"),
    *("dla46x_c", "repghostnet_050"),
)


class Cached(nn.Module):
    """It keeps what it computed of its weights, as the attention of LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.last.weight.sum(1)
        logits: torch.Tensor = self.last(x.mean((2, 3))) + self.cache["bias"]
        return logits


@pytest.fixture(scope="module")
def sweep() -> ModuleType:
    pytest.importorskip("timm")
    spec = importlib.util.spec_from_file_location("architectures_sweep", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SMALL)
def test_a_small_member_of_a_family_passes_every_check(
    sweep: ModuleType, name: str
) -> None:
    model = create_model(f"timm/{name}", sweep.CLASSES, seed=0).eval()
    side = sweep.side_of(f"timm/{name}", model)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, side, side, generator=draw)
    sweep.prepare(model, x)
    assert sweep.features(model, x) == "yes"
    assert sweep.blocks(model).isdigit()
    assert sweep.view(model, x).endswith((" folded", "as it is"))
    assert sweep.attack(model, x) == "yes"
    assert sweep.new_head(model, x) == "yes"
    assert sweep.file(model, x) == "yes"


def test_the_page_has_every_architecture_and_no_failure(sweep: ModuleType) -> None:
    """Whoever adds an architecture, or updates timm, runs the sweep for what is new."""
    from timm.models import _registry

    modules = {_registry._model_to_module[name] for name in sweep.TIMM}
    assert modules == set(_registry._module_to_models)
    page = (BENCH.parents[1] / "docs" / "architectures.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith("| architecture")
    ]
    known = {*ARCHITECTURES, *(f"timm/{name}" for name in sweep.TIMM)}
    assert {row[0] for row in rows} == known
    done = {row[0]: row for row in sweep.read_done(sweep.RESULTS).values()}
    for name, *cells in rows:
        assert [name, *cells] == [cell or "" for cell in done[name]]
        features, blocks, view, *others = cells[3:]
        assert features in ("yes", "not linear", ""), name
        # CoaT has some of its layers in several modules.
        assert (
            blocks.partition(", ")[0].isdigit()
            if "coat_tiny" in name
            else blocks.isdigit()
        )
        assert view.endswith((" folded", "as it is")) or view == "", name
        assert set(others) in ({"yes"}, {""}), name


def test_the_sweep_goes_on_where_it_stopped(
    sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def row_of(arch: str, most: float) -> list[str]:
        tried.append(arch)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return [arch, *["yes"] * 9]

    monkeypatch.setattr(sweep, "row_of", row_of)
    done = tmp_path / "done.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sweep.try_all(["a", "b", "c"], 60, done)
    left = [arch for arch in ("a", "b", "c") if arch not in sweep.read_done(done)]
    sweep.try_all(left, 60, done)
    assert tried == ["a", "b", "b", "c"]
    assert [*sweep.read_done(done)] == ["a", "b", "c"]


def test_views_of_windows_and_of_caches_follow_the_weights() -> None:
    """Swin holds buffers that its state does not have."""
    timm = pytest.importorskip("timm")
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(1, 2),
        num_heads=(1, 2), num_classes=3,
    )  # fmt: skip
    for net in (swin, Cached()):
        model = as_model(net).eval()
        x = torch.rand(2, 3, 32, 32)
        model(x)  # with gradients: what is cached now belongs to a graph
        view = AttackView(model, fold=False)
        view(x)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
        view.refresh()
        fresh = AttackView(model, fold=False)
        assert torch.equal(view(x), fresh(x))
    torch.testing.assert_close(AttackView(as_model(swin))(x), swin(x))
