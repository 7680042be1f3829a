"""Tests of pages and tables."""
