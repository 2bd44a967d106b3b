"""Images -> projections -> artifacts, a(x) = phi(x) - x*; and how others read and check them."""
