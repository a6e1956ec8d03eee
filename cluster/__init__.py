"""Where work runs: settings, storage, Ray sessions and jobs. Knows Ray and machines; knows no models."""
