"""The methods that the mm-CSN is compared with, one in each file."""
