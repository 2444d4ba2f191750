-- Notes how a try to push went. With its last push a closed record begins to grow old.
--
-- KEYS[1]  ns:{id}:task    hash        push_<kind> written, where it is a record; TTL set at last
-- KEYS[2]  ns:{id}:events  stream      as the record
-- KEYS[3]  ns:pushes       sorted set  <kind>:<id> moved on, or removed
-- KEYS[4]  ns:open         sorted set  read: whether the record is closed
-- ARGV     id, kind, state as JSON, seconds until the next try or '', seconds that the record of
--          an ended task lives, then all kinds
-- gives    1, or 0 when another has settled it meanwhile
local member = ARGV[2] .. ':' .. ARGV[1]
if not redis.call('ZSCORE', KEYS[3], member) then return 0 end
if redis.pcall('HEXISTS', KEYS[1], 'status') == 1 then
  redis.call('HSET', KEYS[1], 'push_' .. ARGV[2], ARGV[3])
end
if ARGV[4] ~= '' then
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.6f', now_s() + ARGV[4]), member)
  return 1
end
redis.call('ZREM', KEYS[3], member)
if redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 1 end
for number = 6, #ARGV do
  if redis.call('ZSCORE', KEYS[3], ARGV[number] .. ':' .. ARGV[1]) then return 1 end
end
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
