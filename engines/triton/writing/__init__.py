"""Writes model repositories: folders that `tritonserver --model-repository DIR` serves."""
