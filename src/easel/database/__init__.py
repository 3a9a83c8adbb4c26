"""Where state lives: tables, migrations, and connections to SQLite or PostgreSQL."""
