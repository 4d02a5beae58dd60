"""The HTTP side of serving: what a request passes before a model is asked, and who may ask."""
