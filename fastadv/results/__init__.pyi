from fastadv.results.row import (
    AttackRecord as AttackRecord,
    Row as Row,
    SourceRecord as SourceRecord,
    TargetRecord as TargetRecord,
)
from fastadv.results.settings import (
    EvaluationSetting as EvaluationSetting,
    TransferSetting as TransferSetting,
)
from fastadv.results.table import ResultsTable as ResultsTable
from fastadv.results.verdicts import (
    Verdicts as Verdicts,
    check_paired as check_paired,
    read_verdicts as read_verdicts,
)
