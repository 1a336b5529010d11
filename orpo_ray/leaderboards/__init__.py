"""AlpacaEval, MT-Bench and IFEval: their files, and how each number is made of them. No model is asked anything."""
