raise ImportError("this test wants no page")
