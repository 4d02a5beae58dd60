"""The registry of trained models, the Serve application that answers with them, and its client."""
