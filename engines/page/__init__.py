"""The page of a server: what people draw, edit, compare and explore with in a browser."""
