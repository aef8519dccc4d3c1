"""Django's PostgreSQL backend with pools that bear threads that end, processes that fork and servers that freeze."""
