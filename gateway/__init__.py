"""Server process: everything that exists once per process. It imports the other packages; none imports it."""
