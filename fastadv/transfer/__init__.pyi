from fastadv.results.legacy import LegacyTable as LegacyTable
from fastadv.transfer.config import TransferConfig as TransferConfig
from fastadv.transfer.protocol import transfer as transfer
