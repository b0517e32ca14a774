"""What a run goes on from: ``state`` says what it is, ``store`` how it lies on the disk, ``saver`` when it is saved."""
