"""Reading a YAML config file, strictly. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fastadv.errors import ConfigError


def load_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, one per flag")
    return values
