from fastadv.runs.directory import RunDirectory as RunDirectory
from fastadv.training.config import TrainConfig as TrainConfig
from fastadv.training.optimizer_config import learning_rate as learning_rate
from fastadv.training.runlog import TrainSummary as TrainSummary
from fastadv.training.step import train_step as train_step
from fastadv.training.trainer import Trainer as Trainer, train as train
