//! Machine code under construction.

/// At most `MAX` bytes of code that will lie at `address`.
#[derive(Debug)]
pub(crate) struct Code<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
    address: usize,
}

impl<const MAX: usize> Code<MAX> {
    pub(crate) fn at(address: usize) -> Code<MAX> {
        Code { bytes: [0; MAX], len: 0, address }
    }

    pub(crate) fn here(&self) -> usize {
        self.address + self.len
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(crate) fn put_word(&mut self, word: usize) {
        self.put(&word.to_le_bytes());
    }

    /// An instruction that ends with a 32-bit distance from its end to `target`.
    pub(crate) fn put_relative(&mut self, opcode: &[u8], target: usize) {
        self.put(opcode);
        let distance = target.wrapping_sub(self.here() + 4) as i32;
        self.put(&distance.to_le_bytes());
    }

    /// A jump to anywhere, which changes no register.
    pub(crate) fn put_far_jump(&mut self, target: usize) {
        self.put(&[0xff, 0x25, 0, 0, 0, 0]); // jmp [the next word]
        self.put_word(target);
    }
}
