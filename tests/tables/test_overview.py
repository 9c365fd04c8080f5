"""The table that a sweep ends with: paired metrics alone where there are some, however many were measured."""

from helpers.fake_records import failed, fid, metric, record, write

from qdit.tables import load_results, overview

PAIRED = ("sqnr", "psnr", "ssim", "latent_mse", "lpips_alex")


def test_it_has_the_first_paired_metrics_and_names_the_others(tmp_path):
    write(tmp_path, record("fp", "w16a16", {"fid_lite0": fid(60.0)}))
    write(tmp_path, record("rtn", "w8a8", {name: metric(1.0, 0.1) for name in PAIRED} | {"fid_lite0": fid(62.0)}))
    table = overview(load_results(tmp_path))
    assert table.header == [*("bits", "quantizer", "SQNR (dB) ↑", "PSNR (dB) ↑", "SSIM ↑", "latent_mse ↑", "MB")]
    assert table.lines[0] == "Also measured: fid_lite0, lpips_alex (--metrics all)."


def test_without_paired_metrics_it_has_the_others(tmp_path):
    write(tmp_path, record("fp", "w16a16", {"fid_lite0": fid(60.0)}), record("rtn", "w8a8", {"fid_lite0": fid(62.0)}))
    assert overview(load_results(tmp_path)).header == ["bits", "quantizer", "FID_lite0 ↓", "MB"]


def test_where_every_run_failed_it_says_why(tmp_path):
    write(tmp_path, failed("rtn", "w8a8", "out of memory"))
    table = overview(load_results(tmp_path))
    assert [cell.notes for cell in table.rows[0]] == [(), (), (1,)]
    assert table.footnotes == ["rtn-w8a8, seed 0: out of memory"]
