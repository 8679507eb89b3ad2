"""Export runs to the formats of other engines, check that these compute the same, and import models from them."""
