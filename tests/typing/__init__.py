"""Programs for type checkers: `right` is to pass, and every marked line of `wrong` is to be reported."""
