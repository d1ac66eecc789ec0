"""The methods to compare with, each answering a completion question in one file."""
