"""The methods that the mm-CSN is compared with, a file for each."""
