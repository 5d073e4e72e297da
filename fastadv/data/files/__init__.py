"""File formats that hold data sets, and what packs and checks them."""
