"""An HTTP server that speaks OpenAI's Images API: what clients ask for joins in batches, as in Triton."""
