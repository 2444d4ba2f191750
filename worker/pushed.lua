-- Notes how a try to push went. With its last push a closed record begins to grow old.
--
-- KEYS[1]  ns:{id}:task    hash        where it still is: its field written, TTL set with the last
-- KEYS[2]  ns:{id}:events  stream      as the record
-- KEYS[3]  ns:pushes       sorted set  member moved on, or removed
-- KEYS[4]  ns:open         sorted set  read: whether the record is closed
-- ARGV     id, member, field of the record, state as JSON, seconds until the next try or '',
--          seconds that the record of an ended task lives
-- gives    1, or 0 when another has settled it meanwhile
if not redis.call('ZSCORE', KEYS[3], ARGV[2]) then return 0 end
local is_there = redis.call('HEXISTS', KEYS[1], 'status') == 1
if is_there then redis.call('HSET', KEYS[1], ARGV[3], ARGV[4]) end
if ARGV[5] ~= '' then
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.6f', now_s() + ARGV[5]), ARGV[2])
  return 1
end
redis.call('ZREM', KEYS[3], ARGV[2])
if is_there and redis.call('HINCRBY', KEYS[1], 'pushes', -1) <= 0
  and not redis.call('ZSCORE', KEYS[4], ARGV[1]) then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
end
return 1
