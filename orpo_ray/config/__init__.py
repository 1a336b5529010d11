"""The typed configuration of a run, an evaluation, scores, a sweep, a pipeline or a benchmark: YAML plus dotted
overrides.

An unknown key, a value of the wrong type or out of range is a `UserError` of one line that names the file and
the key.
"""

from orpo_ray.config.benchmark import BenchmarkConfig, load_benchmark
from orpo_ray.config.data import DataConfig
from orpo_ray.config.evaluation import EvaluationConfig
from orpo_ray.config.evaluation_benchmark import EvaluationBenchmarkConfig
from orpo_ray.config.loading import load_as, load_config, parse_as, parse_config
from orpo_ray.config.loop import LoopConfig, OptimConfig
from orpo_ray.config.objectives import ObjectiveConfig, OrpoConfig, SftConfig
from orpo_ray.config.pipeline import Pipeline, load_pipeline
from orpo_ray.config.reading import read_yaml
from orpo_ray.config.rollouts import RolloutsConfig
from orpo_ray.config.schema import LoraConfig, ModelConfig, ScalingConfig, StorageConfig, TrainConfig
from orpo_ray.config.score import ScoreConfig
from orpo_ray.config.sweep import SweepConfig, load_any, load_sweep

__all__ = [
    "BenchmarkConfig",
    "DataConfig",
    "EvaluationBenchmarkConfig",
    "EvaluationConfig",
    "LoopConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "OrpoConfig",
    "Pipeline",
    "RolloutsConfig",
    "ScalingConfig",
    "ScoreConfig",
    "SftConfig",
    "StorageConfig",
    "SweepConfig",
    "TrainConfig",
    "load_any",
    "load_as",
    "load_benchmark",
    "load_config",
    "load_pipeline",
    "load_sweep",
    "parse_as",
    "parse_config",
    "read_yaml",
]
