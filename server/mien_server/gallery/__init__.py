"""Galleries: enrolled faces in collections, kept in SQLite and searched in memory."""
