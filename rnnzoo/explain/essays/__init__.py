"""The gallery's essays: prose in one file for each language, numbers and figures made when the pages are built."""
