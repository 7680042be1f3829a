"""Tests of what is measured: bins, scopes, statistics, metrics and temperature."""
