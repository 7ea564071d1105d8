"""Tests of other projects, run against llcuda."""
