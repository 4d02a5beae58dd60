"""How what people have becomes what a model reads: data preparation and serving both use it, so both do the same."""
