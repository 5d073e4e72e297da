from fastadv.evaluation.accuracy import (
    Accuracy as Accuracy,
    Evaluation as Evaluation,
    StageResult as StageResult,
)
from fastadv.evaluation.config import EvaluationConfig as EvaluationConfig
from fastadv.evaluation.journal import Journal as Journal
from fastadv.evaluation.judging import evaluate as evaluate
from fastadv.evaluation.radii import RadiusGrid as RadiusGrid
from fastadv.evaluation.source import (
    evaluate_checkpoint as evaluate_checkpoint,
    evaluate_source as evaluate_source,
)
