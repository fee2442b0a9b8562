from lancet_pipeline.cli.app import main

main()
