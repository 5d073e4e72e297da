from fastadv.results.table import ResultsTable as ResultsTable
from fastadv.transfer.config import TransferConfig as TransferConfig
from fastadv.transfer.protocol import transfer as transfer
