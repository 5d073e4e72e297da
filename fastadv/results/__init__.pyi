from fastadv.results.row import AttackRecord as AttackRecord
from fastadv.results.row import Row as Row
from fastadv.results.row import SourceRecord as SourceRecord
from fastadv.results.row import TargetRecord as TargetRecord
from fastadv.results.settings import EvaluationSetting as EvaluationSetting
from fastadv.results.settings import TransferSetting as TransferSetting
from fastadv.results.table import ResultsTable as ResultsTable
