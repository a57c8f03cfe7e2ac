"""Training experiments: models trained over mixers and seeds, what each cost beside what it won."""

from flashmix.bench.training.experiment import Experiment, run_experiment

__all__ = ["Experiment", "run_experiment"]
