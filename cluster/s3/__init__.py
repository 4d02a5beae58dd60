"""How bytes travel between this process and an S3 server."""
