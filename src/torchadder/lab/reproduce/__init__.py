"""Reproduce the tables of the paper: tables as data, a queue of runs, and a record beside the paper's numbers."""

from torchadder.lab.reproduce.experiments import EXPERIMENTS, Experiment, Row, get_experiment
from torchadder.lab.reproduce.queue import Job, Queue, Report, Result

__all__ = ["EXPERIMENTS", "Experiment", "Job", "Queue", "Report", "Result", "Row", "get_experiment"]
