"""What the client remembers between runs; SQLite files in the state folder."""
