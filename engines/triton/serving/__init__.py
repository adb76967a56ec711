"""What the Python models of a repository do, inside of a Triton server."""
