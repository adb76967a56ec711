"""Sets of images held against each other: distances, their noise, and the figures of evaluators such as FID."""
