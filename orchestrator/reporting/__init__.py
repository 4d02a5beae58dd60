"""What people read: words, tables, charts and pages; no Ray, no torch, no terminal."""
