"""Imports what a vLLM engine of this package needs, as it needs it: for the process that workers are forked from."""

import os

from orpo_ray.inference.generation import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # vLLM reads some of it when it is imported

import vllm
import vllm.v1.engine.llm_engine

__all__ = ["vllm"]
