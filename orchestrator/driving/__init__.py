"""The driver's side of a training: it places workers, watches them and begins again; Ray, no torch."""
