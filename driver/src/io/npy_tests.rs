//! The array door: round trips, formats refused, hostile headers.

use super::*;

fn npy(version: u8, text: &str, data: &[u8]) -> Vec<u8> {
    let length = text.len() as u32;
    let length = if version == 1 { length.to_le_bytes()[..2].to_vec() } else { length.to_le_bytes().to_vec() };
    [MAGIC, &[version, 0], &length, text.as_bytes(), data].concat()
}

fn error_of(bytes: &[u8]) -> String {
    format!("{:#}", parse_npy(bytes).unwrap_err())
}

#[test]
fn numpys_own_files_are_read() {
    let scalar = parse_npy(include_bytes!("testdata/scalar.npy")).unwrap();
    assert_eq!(scalar, Array { shape: vec![], elements: Elements::F32(vec![2.5]) });
    let stored = parse_npz(include_bytes!("testdata/stored.npz")).unwrap();
    assert_eq!(stored.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(stored["a"], Array { shape: vec![2, 3], elements: Elements::F32(vec![0., 1., 2., 3., 4., 5.]) });
    assert_eq!(stored["b"].elements, Elements::I64(vec![-1, 5]));
    let deflated = parse_npz(include_bytes!("testdata/deflated.npz")).unwrap();
    assert_eq!(deflated["zeros"], Array { shape: vec![40, 50], elements: Elements::F64(vec![0.0; 2000]) });
    assert_eq!(deflated["c"].elements, Elements::U8(vec![200, 3]));
}

#[test]
fn written_files_read_back_and_are_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    for shape in [vec![], vec![1], vec![6], vec![2, 3], vec![1, 2, 3], vec![0, 4]] {
        let count: usize = shape.iter().product();
        let floats: Vec<f32> = (0..count).map(|v| v as f32 - 0.5).collect();
        write_npy_f32(&path, &shape, &floats).unwrap();
        assert_eq!(read_npy(&path).unwrap(), Array { shape: shape.clone(), elements: Elements::F32(floats) });
        assert_eq!((std::fs::metadata(&path).unwrap().len() as usize - 4 * count) % 64, 0);
        write_npy_i32(&path, &shape, &vec![-7; count]).unwrap();
        assert_eq!(read_npy(&path).unwrap().elements, Elements::I32(vec![-7; count]));
    }
    assert!(write_npy_f32(&path, &[2, 2], &[1.0]).is_err());
}

#[test]
fn the_header_is_numpys() {
    let want = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }";
    assert!(header("<f4", &[1, 3])[10..].starts_with(want.as_bytes()));
    assert!(String::from_utf8_lossy(&header("<f4", &[3])).contains("'shape': (3,), }"));
    assert!(String::from_utf8_lossy(&header("<f4", &[])).contains("'shape': (), }"));
}

#[test]
fn versions_types_and_spellings() {
    for version in [1, 2, 3] {
        let bytes = npy(version, "{\"shape\":(2,),'descr':'<i2','fortran_order':False}\n", &[1, 0, 255, 255]);
        assert_eq!(parse_npy(&bytes).unwrap(), Array { shape: vec![2], elements: Elements::I16(vec![1, -1]) });
    }
    for (descr, size, dtype) in [("|i1", 1, "int8"), ("|u1", 1, "uint8"), ("<i8", 8, "int64"), ("<f8", 8, "float64")] {
        let bytes = npy(1, &format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (), }}"), &vec![0; size]);
        let array = parse_npy(&bytes).unwrap();
        assert_eq!((array.elements.dtype(), array.elements.to_f32()), (dtype, vec![0.0]));
    }
}

#[test]
fn refusals_say_what_to_do() {
    let of = |text: &str, data: &[u8]| error_of(&npy(1, text, data));
    assert!(of("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1)}", &[0; 4]).contains("ascontiguousarray"));
    assert!(of("{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", &[0; 4]).contains("astype"));
    assert!(of("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", &[0; 4]).contains("'|O'"));
    assert!(of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", &[]).contains("records"));
    assert!(of("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", &[0; 4]).contains("needs 8"));
    assert!(of("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", &[0; 5]).contains("needs 4"));
    assert!(of("{'descr': '<f4', 'fortran_order': False}", &[]).contains("no header field 'shape'"));
    assert!(of("{'shape': (), 'shape': ()}", &[]).contains("twice"));
    let rank9 = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}";
    assert!(of(rank9, &[0; 4]).contains("rank 9"));
    assert!(error_of(b"PK\x03\x04").contains("not a .npy"));
    assert!(error_of(&npy(4, "{}", &[])).contains("format 4"));
}

#[test]
fn hostile_shapes_allocate_nothing() {
    for shape in ["4294967296, 4294967296", "18446744073709551615", "9223372036854775807, 0, 3", "1000000000000"] {
        let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({shape},)}}");
        assert!(parse_npy(&npy(1, &text, &[0; 8])).is_err(), "{shape}");
    }
    for shape in ["99999999999999999999999", "-1", "1.5", "a", "(1", ""] {
        let text = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({shape},)}}");
        assert!(parse_npy(&npy(1, &text, &[0; 8])).is_err(), "{shape}");
    }
    assert!(error_of(&[MAGIC, &[2, 0], &[255; 4]].concat()).contains("at most"));
}

#[test]
fn every_prefix_and_flip_is_handled() {
    let npy = include_bytes!("testdata/scalar.npy");
    for length in 0..npy.len() {
        assert!(parse_npy(&npy[..length]).is_err(), "{length}");
    }
    for npz in [include_bytes!("testdata/stored.npz").as_slice(), include_bytes!("testdata/deflated.npz")] {
        for length in 0..npz.len() {
            assert!(parse_npz(&npz[..length]).is_err(), "{length}");
        }
        for at in 0..npz.len() * 8 {
            let mut hurt = npz.to_vec();
            hurt[at / 8] ^= 1 << (at % 8);
            let _ = parse_npz(&hurt);
        }
    }
}

#[test]
fn a_budget_stops_an_archive_that_unpacks_too_far() {
    let scalar: &[u8] = include_bytes!("testdata/scalar.npy");
    let mut budget = scalar.len() as u64;
    read_entry(scalar, &mut budget).unwrap();
    assert_eq!(budget, 0);
    assert!(format!("{:#}", read_entry(scalar, &mut budget).unwrap_err()).contains("unpacked"));
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.npz");
    std::fs::write(&path, b"nothing").unwrap();
    assert!(format!("{:#}", read_npz(&path).unwrap_err()).contains("bad.npz': is not a .npz"));
    assert!(format!("{:#}", read_npy(dir.path()).unwrap_err()).contains("regular file"));
}
