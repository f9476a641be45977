"""`python -m svp`."""

from svp.cli import main

if __name__ == "__main__":
    main()
