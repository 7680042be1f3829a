"""Tests of the calibration losses."""
