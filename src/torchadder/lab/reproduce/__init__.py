"""The tables of the paper, run and set beside the paper's numbers: tables as data, a queue of runs, the record."""

from torchadder.lab.reproduce.experiments import EXPERIMENTS, Experiment, Row, get_experiment
from torchadder.lab.reproduce.queue import Job, Queue, Report, Result

__all__ = ["EXPERIMENTS", "Experiment", "Job", "Queue", "Report", "Result", "Row", "get_experiment"]
