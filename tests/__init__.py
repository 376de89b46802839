"""Tests in folders named after the program's; those of the whole project, its pages and its layout are here."""
