"""Configuration, logging, distributed helpers and the data path; they import only one another."""
